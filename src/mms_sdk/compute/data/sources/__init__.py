"""Where rows come from: each source is listed or read lazily, and says what it leaves out."""
