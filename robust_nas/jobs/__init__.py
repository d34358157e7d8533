"""Jobs beside the recipe: attacks of any models, ensembles of several runs."""
