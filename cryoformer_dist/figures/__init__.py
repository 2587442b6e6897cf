"""Pictures and pages: surfaces, plots, the HTML of reports."""
