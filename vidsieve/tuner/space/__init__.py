"""What is searched: policies, their settings and the stages that may be left out."""
