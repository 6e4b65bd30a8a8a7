// keep doesn't close its connections.
//
// A connection's first line selects how:
//
//	idle      reads until the client closes: nothing is left behind
//	upstream  dials the service itself, reads from there, and forgets to close that when the client has gone:
//	          a goroutine parked in leak, and one parked in serve for the other end
//	channel   parks a writer on a channel, and never closes
//	stuck     asks for readiness and reads nothing (RawConn.Read)
//	peek N    peeks until N bytes have come, as who waits for a header does, and reads
//	low N     is readable from N bytes on (SO_RCVLOWAT), and reads
//	exec      runs children that end at once, one after another
//	crowd N   dials the service itself N times and reads there: 2 N goroutines parked
//
// It answers with the line, once the goroutine of that connection is about to park.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os/exec"
	"syscall"

	"services/kit"
)

var own string

func main() {
	addr := flag.String("addr", "", "address to listen on")
	flag.Parse()
	l := kit.Bind(*addr)
	own = l.Addr().String()
	kit.Ready(l)
	for {
		c, err := l.Accept()
		kit.Must(err)
		go serve(c.(*net.TCPConn))
	}
}

func serve(c *net.TCPConn) {
	lines := bufio.NewReader(c)
	line, err := lines.ReadString('\n')
	if err != nil {
		c.Close()
		return
	}
	var how string
	var n int
	fmt.Sscan(line, &how, &n)
	if how == "upstream" {
		n = 1
	}
	for i := 0; i < n && how != "low" && how != "peek"; i++ {
		up, err := net.Dial("tcp", own)
		kit.Must(err)
		fmt.Fprintln(up, "idle")
		answers := bufio.NewReader(up)
		answers.ReadString('\n')
		go leak(answers)
	}
	if how == "low" {
		raw, err := c.SyscallConn()
		kit.Must(err)
		kit.Must(raw.Control(func(fd uintptr) {
			kit.Must(syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n))
		}))
	}
	fmt.Fprint(c, line)
	switch how {
	case "channel":
		forget()
	case "exec":
		for exec.Command("true").Run() == nil {
		}
	case "stuck":
		ignore(c)
	case "peek":
		peek(c, n)
		lines.ReadString('\n')
	default:
		lines.ReadString('\n')
	}
	c.Close()
}

func leak(r *bufio.Reader) { r.ReadString('\n') }

func forget() { <-make(chan int) }

func peek(c *net.TCPConn, size int) {
	raw, err := c.SyscallConn()
	kit.Must(err)
	header := make([]byte, size)
	raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), header, syscall.MSG_PEEK)
		return n == size || n == 0 && err == nil
	})
}

func ignore(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	kit.Must(err)
	raw.Read(func(uintptr) bool { return false })
}
