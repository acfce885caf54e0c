"""What benchmarks/pareto.py trains and measures alike: configs of three heads, backbones, records, plot."""
