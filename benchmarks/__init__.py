"""Questions with measured answers, one file or package each. Each prints its table and writes benchmarks/results/."""
