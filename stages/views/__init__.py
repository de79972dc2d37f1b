"""Views: what a teacher sees of a region."""
