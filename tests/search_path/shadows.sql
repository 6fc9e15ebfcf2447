-- A schema that shadows pg_catalog: whatever a statement names without saying pg_catalog is found
-- here first, and nobody but a superuser may use it, so that the statement fails before it runs.
-- A mere reference is an error: rights are checked before the first row.
CREATE SCHEMA hostile;
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
SET check_function_bodies = off;

-- Functions, aggregates and window functions alike. `pg_typeof` stands for a body: it never runs.
DO $do$
DECLARE f record;
BEGIN
    FOR f IN SELECT p.*, oidvectortypes(proargtypes) AS types FROM pg_proc p
             WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'p'
               AND NOT proargtypes::oid[] && ARRAY['internal', 'cstring']::regtype[]::oid[]
               AND prorettype <> ALL (ARRAY['internal', 'cstring']::regtype[])
    LOOP
        EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s %s LANGUAGE internal AS ''pg_typeof''',
            f.proname,
            CASE WHEN f.provariadic <> 0
                 THEN regexp_replace(f.types, '([^ ,]+|"[^"]+"|[^,]+)$', 'VARIADIC \1') ELSE f.types END,
            CASE WHEN f.proretset THEN 'SETOF' ELSE '' END, format_type(f.prorettype, NULL));
    END LOOP;
END $do$;

-- Operators, each by a function of its own.
DO $do$
DECLARE o record;
BEGIN
    FOR o IN SELECT *, format('operator %s %s', oid, oprname) AS name FROM pg_operator
             WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprcode <> 0
    LOOP
        EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s LANGUAGE internal AS ''pg_typeof''',
            o.name, concat_ws(', ', format_type(nullif(o.oprleft, 0), NULL),
                              format_type(nullif(o.oprright, 0), NULL)),
            format_type(o.oprresult, NULL));
        EXECUTE format('CREATE OPERATOR hostile.%s (%s, FUNCTION = hostile.%I)', o.oprname,
            concat_ws(', ', 'LEFTARG = ' || format_type(nullif(o.oprleft, 0), NULL),
                      'RIGHTARG = ' || format_type(nullif(o.oprright, 0), NULL)), o.name);
    END LOOP;
END $do$;

-- Types: domains that nobody may convert to.
CREATE FUNCTION hostile.forbidden() RETURNS boolean LANGUAGE sql AS 'SELECT true';
DO $do$
DECLARE t record;
BEGIN
    FOR t IN SELECT * FROM pg_type
             WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm')
               AND typcategory <> 'A'
    LOOP
        EXECUTE format('CREATE DOMAIN hostile.%I AS pg_catalog.%I CHECK (hostile.forbidden())',
                       t.typname, t.typname);
        EXECUTE format('REVOKE USAGE ON TYPE hostile.%I FROM PUBLIC', t.typname);
    END LOOP;
END $do$;

-- Catalogs, as views that nobody may read. A view has no column of type anyarray.
DO $do$
DECLARE c record;
BEGIN
    FOR c IN SELECT relname, string_agg(
                 quote_ident(attname) || CASE WHEN atttypid = 'anyarray'::regtype
                     THEN '::text AS ' || quote_ident(attname) ELSE '' END, ', ') AS columns
             FROM pg_class r JOIN pg_attribute ON attrelid = r.oid AND attnum > 0
             WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
               AND relname <> 'pg_statistic_ext_data' GROUP BY relname
    LOOP
        EXECUTE format('CREATE VIEW hostile.%I AS SELECT %s FROM pg_catalog.%I', c.relname, c.columns,
                       c.relname);
    END LOOP;
END $do$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA hostile FROM PUBLIC;
