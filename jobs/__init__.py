"""Jobs, one process per file: parse the configuration, call one function of a pipeline, exit."""
