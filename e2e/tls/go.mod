module postern.dev/e2e/tls

go 1.21
