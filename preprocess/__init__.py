"""From photos and CSVs to sharded, checked TFRecords, as an Apache Beam job."""
