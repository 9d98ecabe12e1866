"""From TFRecords to a model that names the object and draws its box."""
