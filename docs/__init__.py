"""The site: its pages, its figures and what builds them."""
