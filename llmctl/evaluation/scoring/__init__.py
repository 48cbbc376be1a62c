"""From replies to scores: extraction, judges, aggregation, statistics, comparison."""
