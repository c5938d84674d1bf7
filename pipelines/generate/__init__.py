"""The synthetic pool: engines on vLLM, what they write, shards that are committed once. Nothing here is trained."""
