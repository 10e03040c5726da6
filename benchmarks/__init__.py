"""Questions with measured answers, one file each. Every file prints its table and writes benchmarks/results/."""
