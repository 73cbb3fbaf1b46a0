"""File handles of a union, and unions and volumes exported over NFS."""
