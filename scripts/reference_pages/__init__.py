"""The pages of docs/reference, one module each. `page()` gives the Markdown, made from the code alone."""
