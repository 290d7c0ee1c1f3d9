"""A page in the browser: a clip answered with and without a policy, side by side (`vidsieve demo`)."""
