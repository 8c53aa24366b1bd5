import hypothesis
import torch as th

# The same examples on every machine, however slow; a found one is in the report, so no database is kept.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("tests")

# The networks here are small: threads would only wait for each other.
th.set_num_threads(1)
