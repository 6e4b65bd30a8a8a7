// A launcher, like those that start containers: it asks the daemon at -daemon for a service at -addr, and
// prints the daemon's answers until the end. True numbers: one productive read wakeup per spaced line, and
// nothing from the service, which is the daemon's child.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address of the service")
	daemon := flag.String("daemon", "", "address of the daemon")
	flag.Parse()
	c, err := net.Dial("tcp", *daemon)
	kit.Must(err)
	_, err = fmt.Fprintln(c, *addr)
	kit.Must(err)
	_, err = io.Copy(os.Stdout, c)
	kit.Must(err)
}
