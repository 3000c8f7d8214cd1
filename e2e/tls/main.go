// A TLS peer of Go's own library with an SVID of our CA, for tests: verifies the chain for both uses, speaks mutual TLS with
// itself, and then with the CA. Prints what it saw, and ends with 1 at the first thing that Go does not accept.
//
//	tls-peer DIR [ADDRESS SPIFFE-ID]    DIR has svid.pem, key.pem and bundle.pem
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "tls-peer:", err)
		os.Exit(1)
	}
	return value
}

func certificates(file string) []*x509.Certificate {
	rest := must(os.ReadFile(file))
	var all []*x509.Certificate
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return all
		}
		all = append(all, must(x509.ParseCertificate(block.Bytes)))
	}
}

// Go matches a server's name to DNS and IP SANs only; an SVID has a URI. The chain is verified all the same.
func verified(roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("no certificate")
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return "", err
	}
	if len(chain[0].URIs) != 1 {
		return "", fmt.Errorf("%d URI SANs", len(chain[0].URIs))
	}
	return chain[0].URIs[0].String(), nil
}

func client(roots *x509.CertPool, own tls.Certificate, wanted string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{own},
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // its name alone: see verified
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := verified(roots, state.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err == nil && id != wanted {
				err = fmt.Errorf("it is %s, not %s", id, wanted)
			}
			return err
		},
	}
}

func main() {
	dir := os.Args[1]
	at := func(name string) string { return filepath.Join(dir, name) }
	roots := x509.NewCertPool()
	for _, root := range certificates(at("bundle.pem")) {
		roots.AddCert(root)
	}
	chain := certificates(at("svid.pem"))
	var id string
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		id = must(verified(roots, chain, usage))
	}
	fmt.Println("verified", id)

	own := must(tls.LoadX509KeyPair(at("svid.pem"), at("key.pem")))
	listener := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		NextProtos:   []string{"h2"},
	}))
	served := make(chan error, 1)
	go func() {
		connection, err := listener.Accept()
		if err == nil {
			defer connection.Close()
			err = connection.(*tls.Conn).Handshake()
		}
		if err == nil {
			_, err = connection.Write([]byte("!"))
		}
		served <- err
	}()
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	connection := must(tls.DialWithDialer(dialer, "tcp", listener.Addr().String(), client(roots, own, id)))
	must(connection.Read(make([]byte, 1)))
	must(0, <-served)
	fmt.Println("mutual TLS with itself")

	if len(os.Args) == 4 {
		connection := must(tls.DialWithDialer(dialer, "tcp", os.Args[2], client(roots, own, os.Args[3])))
		state := connection.ConnectionState()
		fmt.Printf("mutual TLS with the CA, %s, %s\n", tls.VersionName(state.Version), state.NegotiatedProtocol)
	}
}
