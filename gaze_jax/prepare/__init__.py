"""The room of prepared data: other formats to shards that training reads."""
