"""Answer extraction, judge models, aggregation, statistics and run comparison."""
