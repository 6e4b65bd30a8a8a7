// Echo over a Unix stream socket at -path; TCP on -addr is for readiness and
// echoes too. True numbers: each spaced ping = one productive read wakeup.
// Each answer that the client reads is one more event, which nobody claims: there is room again.
package main

import (
	"flag"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	path := flag.String("path", "", "the Unix socket")
	flag.Parse()
	u, err := net.Listen("unix", *path)
	kit.Must(err)
	go kit.Serve(u, kit.Echo)
	kit.Serve(kit.Listen(*addr), kit.Echo)
}
