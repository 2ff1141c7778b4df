"""What people hold in their hands: `connect()`, and handles of datasets, jobs, models and deployments."""
