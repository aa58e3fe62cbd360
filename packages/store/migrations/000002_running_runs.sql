-- The reconciler looks for running runs of which nothing is open: without this it reads every run there ever was.
create index run_running on run (created_at) where state = 'running';
