// Stands in for webrtc-polyfill, whose native module install scripts would have to fetch: Shoal's peers speak TCP only.
export const RTCPeerConnection = undefined
export const RTCSessionDescription = undefined
export const RTCIceCandidate = undefined
