"""Hi-MAR's graphs: traced pieces, put together per step of each phase."""
