"""Studies: many runs that answer one question, and the page that says what they found."""
