"""Everything HTTP: schemas, routes, uploads, streams and the one table from exceptions to statuses."""
