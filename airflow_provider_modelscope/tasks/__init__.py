"""What the operators and the sensor share: waiting, storing, the submission record, assets and lineage."""
