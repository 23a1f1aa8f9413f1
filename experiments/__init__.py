"""One flat script a result; `python -m experiments.<script> --help` says what it takes."""
