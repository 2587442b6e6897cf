"""The network: hash-grid feature volume, encoders and the query-based deformation decoder."""
