"""What an experiment needs against what there is: estimates, resources, doctor."""
