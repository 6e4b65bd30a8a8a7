// Echo over UDP on the port of -addr; TCP there is for readiness and echoes too.
// True numbers: each spaced datagram = one productive read wakeup, resolved by
// recvfrom (-via readfrom) or recvmsg (-via readmsg). Each answer sent is one more event, which nobody
// claims: the socket's send buffer is free again.
package main

import (
	"flag"
	"net"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	via := flag.String("via", "readfrom", "readfrom or readmsg")
	flag.Parse()
	l := kit.Bind(*addr)
	pc, err := net.ListenPacket("udp", l.Addr().String())
	kit.Must(err)
	go func() {
		u, buf := pc.(*net.UDPConn), make([]byte, 64<<10)
		for {
			if *via == "readmsg" {
				n, _, _, from, err := u.ReadMsgUDP(buf, nil)
				kit.Must(err)
				u.WriteMsgUDP(buf[:n], nil, from)
				continue
			}
			n, from, err := u.ReadFrom(buf)
			kit.Must(err)
			u.WriteTo(buf[:n], from)
		}
	}()
	kit.Ready(l)
	kit.Serve(l, kit.Echo)
}
