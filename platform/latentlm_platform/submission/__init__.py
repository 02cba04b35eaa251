"""An experiment as a job on a Ray cluster: head node, job client, source package."""
