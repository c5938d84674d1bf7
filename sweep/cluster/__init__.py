"""A cluster's machines: a look before they start, what runs on them beside Ray, and their end. Nothing here knows a study."""
