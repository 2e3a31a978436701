"""hwrx for programs: comparisons and labs by calls, with the code that the command line runs."""
