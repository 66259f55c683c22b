"""Making data files: from texts, from templates, from servers, and from other formats."""
