"""The ledger of claims: what textbooks and articles say of packet reception, each put to the test on this kernel.

`lab/claims/NAME.toml` states a claim, who says it, the experiment (an instrument and its parameters) and the predicate
that gives the verdict. `model` reads it, `instruments` measure, `predicate` and `verdict` judge, `session` holds what
instruments share, `inside` is the program that runs where the kernel under test is, `run` drives it, `page` shows it.
"""
