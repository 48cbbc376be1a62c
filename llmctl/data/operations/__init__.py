"""Operations on whole sources: check, convert, merge, split, overlap."""
