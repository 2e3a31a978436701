"""Terminal tables, HTML, figures: everything that is made from a run directory."""
