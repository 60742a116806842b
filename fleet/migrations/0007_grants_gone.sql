DROP TABLE IF EXISTS activation_grant;
