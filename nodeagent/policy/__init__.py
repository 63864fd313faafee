"""Policy as pure decisions: compiled when configuration changes, evaluated without I/O."""
