"""Exams: which questions, how they are asked, what the answers amount to."""
