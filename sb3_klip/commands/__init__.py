"""The subcommands of ``sb3-klip``, one module or function each; :mod:`sb3_klip.cli` has the table."""
