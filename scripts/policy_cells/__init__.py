"""The cells of the policy table: which there are, how each is measured, kept and printed."""
