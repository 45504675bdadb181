"""`tql report`: one self-contained page about one or more runs."""
