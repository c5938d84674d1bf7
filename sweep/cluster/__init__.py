"""A cluster's machines: what is looked at before they start, and what runs on them beside Ray. Nothing here knows a study."""
