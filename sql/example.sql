-- A table to start with: one app in three regions, all on this machine. Try it with e.g. `nc -lk 127.0.0.1 9001`, and
-- replace the rows by your own (`edgeproxy db add`, `edgeproxy db rm`).

INSERT INTO backends (id, app, region, wg_ip, port, weight, soft_limit, hard_limit, country) VALUES
    ('sa-node-1', 'web', 'sa', '127.0.0.1', 9001, 2, 100, 200, 'BR'),
    ('sa-node-2', 'web', 'sa', '127.0.0.1', 9002, 1, 100, 200, 'BR'),
    ('us-node-1', 'web', 'us', '127.0.0.1', 9003, 1, 100, 200, 'US'),
    ('eu-node-1', 'web', 'eu', '127.0.0.1', 9004, 1, 100, 200, 'DE');
