// Echo over TLS, with a self-signed certificate. True numbers: each spaced ping
// after the handshake = one productive read wakeup (a record comes in one segment);
// the handshake itself at most two: ClientHello, Finished.
package main

import (
	"crypto/tls"
	"flag"
	"net"

	"services/kit"
	"services/kit/selfsigned"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	flag.Parse()
	config := selfsigned.TLS()
	kit.Serve(kit.Listen(*addr), func(c net.Conn) { kit.Echo(tls.Server(c, config)) })
}
