"""What a benchmark run looks like to a person: live view, tables, CSV, plots, HTML."""
